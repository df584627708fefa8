from atlas.cli import main

if __name__ == "__main__":  # spawned processes import this module again
    main()
