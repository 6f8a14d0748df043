"""The contracts: action, row, plan, rank log; ID transforms, errors, names. No I/O, no clock."""
