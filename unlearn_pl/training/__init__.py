"""The unlearning module and the passes its objectives read."""
