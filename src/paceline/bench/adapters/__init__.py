"""The engines that can be measured: one module for each kind of arm."""
