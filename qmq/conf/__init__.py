"""conf-qmq to frozen objects; every error says file, line and what to write instead."""
