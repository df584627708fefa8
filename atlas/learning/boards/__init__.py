"""Dashboards of learning by reward besides scalars: values along an episode, and maps of the visited states."""
