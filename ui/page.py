"""What Streamlit runs, from the top, whenever somebody does something."""

if __name__ == "__main__":  # processes that this one starts import this file too
    from ui.parts import main

    main()
