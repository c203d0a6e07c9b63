"""What a run needs before it starts: memory, time, money, and the layout that is best."""
