"""Which adapters are where: in slots, on the host, on the disk; and how they get from one to the other."""
