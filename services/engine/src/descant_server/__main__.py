"""python -m descant_server MODEL"""

from descant_server.main import main

main()
