"""The local web page: uploads, a queue of jobs on one device, their pictures and files; knows no network's insides."""
