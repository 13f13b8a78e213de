"""What training costs, measured: our step beside the released one."""
