"""Small helpers without torch that every floor may use: errors, files, statistics."""
