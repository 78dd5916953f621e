"""What the commands of ``alignlab`` do; each module is imported when its command is called."""
