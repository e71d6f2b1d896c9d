"""The networks. Plain single-device mathematics: no meshes, no data, no losses."""
