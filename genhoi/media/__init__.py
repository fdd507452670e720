"""Clips, masks and images: in and out of files."""
