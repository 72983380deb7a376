"""A primary volume: look up a name, stat and open by gfid, scan."""
