"""What a stage needs of a device, before it runs: memory by part, hours, money, what would fit."""
