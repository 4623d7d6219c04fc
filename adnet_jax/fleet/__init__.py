"""Many clips, one folder each: what is to do, who does it, what failed; knows of a clip only how to segment one."""
