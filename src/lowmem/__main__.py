import sys

try:
    from lowmem.cli import main

    code = main()
except KeyboardInterrupt:  # while this package was imported
    print("lowmem: interrupted; call again to continue", file=sys.stderr)
    code = 130
sys.exit(code)
