from genhoi.cli import main

main()
