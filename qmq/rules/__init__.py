"""SPAMCONTROL's rules, from its files to answers: pure, no Twisted, no clock."""
