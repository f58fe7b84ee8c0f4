"""The causes in words, a module for each chapter of the guide. `poise.stability.causes` has all.

How `specificity` is given:

9  a fact that was read off: a file, a disk, two numbers that must be equal and are not
8  a rule that every healthy update keeps, broken: descent descends, the rate is the planned one
7  a fault with its place: this layer, this tensor
6  a fault with its kind of place: one noise band, one part of the network
5  a mechanism that was measured, though other faults can set it off
4  a trend with a direction
2  a shape of the curve
0  what is left when nothing else was found
"""
