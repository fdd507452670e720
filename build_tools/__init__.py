"""The build of the native parts, which setup.py hands to setuptools. It is not installed."""
