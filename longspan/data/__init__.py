"""From files of text to rows of tokens: sources, tokenization, the token store, and the rows of a stage."""
