"""`descant up`: a whole Descant on one machine, from embedded servers, in one folder.

`command` reads the options, `data_folder` holds what survives a restart, `parts` says what runs and when it is ready,
`stack` starts, watches and stops it, `registration` tells the gateway what the engine serves.
"""
