"""Models that lie on several processes, written as torch's files; no process holds all of one meanwhile."""

from jaxstate.sharded._save import save as save
