"""Clip, mask and picture of an object in; edited clip out."""
