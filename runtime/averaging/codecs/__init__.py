"""How vectors travel: five codecs of one interface."""
