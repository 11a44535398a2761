"""What fits a machine, which size and drafter to take, and what to expect: arithmetic, without the machine."""
