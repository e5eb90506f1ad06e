"""Long texts that anyone can install: from packages of Debian, npm and PyPI to one text file a work."""
