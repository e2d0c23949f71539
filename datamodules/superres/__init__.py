"""Images to restore: enlarge, denoise, deblock, deblur, demosaic; read from folders, degraded here where need be."""
