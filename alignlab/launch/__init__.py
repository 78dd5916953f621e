"""Where stages execute: in this process, or in several processes of this machine."""
