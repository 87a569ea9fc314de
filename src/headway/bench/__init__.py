"""How fast this machine decodes, reads, translates, trains and loads, beside other programs on the same weights."""
