"""Images in classes: folders, the embedded sample, generated shapes."""
