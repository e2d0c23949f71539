"""Tests; a package of its own, because mmsegmentation installs one of the same name, which would come first."""
