"""What runs a model over processes: cut, sharded, pipelined, forward and backward."""
