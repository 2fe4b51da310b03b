"""What leaves the house: the artifact, its manifest, its golden pairs, and the receiver's check."""
