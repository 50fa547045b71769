"""The life of an ENI: its states and transitions, its next step, and what readings and failures mean to it."""
