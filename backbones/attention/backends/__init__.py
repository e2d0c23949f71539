"""Backends of ``attend``, a module each: ``why_not(request)`` says what it cannot serve, ``run(...)`` serves.

All of them share one meaning: ``run(queries, keys, values, *, bias, causal, lengths, scale, dropout)`` as in
:func:`backbones.attention.attend.attend`, with shapes checked and autocast applied already. None is imported before
it is asked for.
"""
