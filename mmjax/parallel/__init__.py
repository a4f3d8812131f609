"""The device mesh, logical axis rules, sharded losses, and the processes of a job."""
