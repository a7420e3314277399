"""The compiled backend: extension modules built from the `.pyx` files beside this one."""
