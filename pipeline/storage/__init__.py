"""Bytes that are whole or absent, on a disk, an object store or the Hub; one owner at a time."""
