"""Edited clips beside their ground truths."""
