"""What a clip and its masks are made into beside plain masks: videos, cut-outs, outlines, run lengths, submissions."""
