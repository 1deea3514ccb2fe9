"""Videos to records: the request, the plan, the work, and the flow processes of GPUs."""
