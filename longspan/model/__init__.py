"""What a decoder is: the plain definition, its families, and weights in and out."""
