"""The command line: `retromae-hf COMMAND`, each command also a module for `accelerate launch -m`."""
