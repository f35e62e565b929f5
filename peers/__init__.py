"""How machines find, know and reach each other. Could carry something that is not training."""
