"""What is measured by more than one task, or defined elsewhere: classifiers, SQuAD, generated texts, tokens."""
