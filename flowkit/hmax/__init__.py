"""The biologically inspired features of actions: flow records to C2 and C3 vectors."""
