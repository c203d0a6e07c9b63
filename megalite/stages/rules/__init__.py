"""Rewards by rule: functions of a prompt, an answer and its row, in processes of their own."""
