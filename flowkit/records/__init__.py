"""Fields to disk and back: the flow record, its formats, its reader and its writer."""
