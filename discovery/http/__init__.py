"""HTTP towards modules and registries: which addresses may be asked, and the connection to one."""
